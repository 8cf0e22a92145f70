"""The micro world's models: how their halves are pretrained, and the YAMLs of both stages."""
