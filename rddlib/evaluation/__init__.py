"""What a small set is worth: networks trained on it, tested on images, shifts and groups."""
