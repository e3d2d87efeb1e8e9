"""What methods are built from: training, distillation, budgets, fitted base classes. May import execution and everything below."""
