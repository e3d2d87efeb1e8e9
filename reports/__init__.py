"""What is shown: tables, figures and the page, made from a run folder and nothing else."""
