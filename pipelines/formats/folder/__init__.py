"""Image files in folders, as people have them."""
