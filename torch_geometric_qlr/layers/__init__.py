"""What is known of the classes of layers, and what is kept on the layers of a model."""
