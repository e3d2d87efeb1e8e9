"""Pretraining of backbones, and general distillation of students, on raw text. May import toolkit, measure, results and below."""
