"""GLaD: images as codes of a generator, and the generator of our own."""
