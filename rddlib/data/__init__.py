"""Images and labels: where they come from, how they are augmented, shifted and corrupted."""
