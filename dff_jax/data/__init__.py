"""From files or worlds to batches: folders, tfds datasets, augmentation, loaders."""
