"""What stands where on a page, and questions answered from it."""
