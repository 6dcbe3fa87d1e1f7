"""How well a model does: scores against references, and the report that shows them beside the samples."""
