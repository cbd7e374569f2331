"""Drop exact and near duplicates."""
