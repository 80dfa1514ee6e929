"""Numbers: the quantised block formats, and the products over matrices kept in them."""
