"""From a data set to a small synthetic one: `reference` is the method on one page, `loop` the fast form."""
