"""The axes of distillation: what is taught, by which layers, how the student starts, in which stages."""
