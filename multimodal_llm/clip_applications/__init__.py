"""Images and texts in one space: classes without training, and search."""
