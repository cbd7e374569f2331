"""What pretrain and finetune share: loop, objectives, optimizers, checkpoints, batches."""
