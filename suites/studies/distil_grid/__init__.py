"""The grid of distillation: every kind of knowledge with every matching of layers and every start of the student."""
