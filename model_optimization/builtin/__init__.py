"""The embedded subject of all experiments: reviews made by code, and a classifier trained on them."""
