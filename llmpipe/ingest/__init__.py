"""Read files and folders into documents."""
