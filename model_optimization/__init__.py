"""From a trained model to a watched service: quantize, prune, distill, export, serve, monitor."""
