"""The rules of a fair comparison, printed in every report."""

from __future__ import annotations

RULES: tuple[tuple[str, str], ...] = (
    (
        "Same conditions",
        (
            "Rows of one table share weights where the methods allow it, and always dtype, attention kernel, "
            "padding and length ordering. Rows from different devices, dtypes or protocols are never averaged."
        ),
    ),
    (
        "Sorting is not early exit",
        (
            "Ordering samples by length makes every method faster; a method gets credit only against "
            "a reference that was ordered the same way."
        ),
    ),
    ("Rivals at their best", "Each rival gets the optimisations the others get; batch sizes are stated."),
    ("Two protocols", "`paper` pads every sample to one length; `modern` runs packed tokens. They are never mixed."),
    (
        "Two FLOPs conventions",
        (
            "`linear` is 2 x MACs of the linear layers, as FastBERT counts; `full` adds attention products, "
            "exit heads and the rest of the matrix products that ran. Both count what the measured pass executed."
        ),
    ),
    (
        "The timed region",
        (
            "From token ids on the device to logits on the host in input order: predicting, sorting and "
            "un-sorting are inside; tokenising, training and building tables are outside and reported apart."
        ),
    ),
    (
        "Paired timing",
        (
            "After a warm-up, rounds alternate between the reference and the method, with another order of the samples "
            "in every round; medians are shown with 10th and 90th percentiles over the rounds."
        ),
    ),
    ("Nothing is tuned on test", "Thresholds, quantiles and epochs are chosen on dev."),
    (
        "Intervals and paired tests",
        (
            "Accuracy carries a 95 % bootstrap interval over the test samples; differences are tested on the same "
            "samples with an exact test, corrected for the number of comparisons (Holm)."
        ),
    ),
    (
        "Speed-up is wall time",
        (
            "`Speed-up` is wall time of the reference over wall time of the method, both in this run. "
            "Ratios of FLOPs and of layers have their own names."
        ),
    ),
    ("Only what was measured", "Every number here was measured in this run; none is quoted from a paper."),
    (
        "Synthetic data says so",
        (
            "Numbers from the embedded, generated data sets carry the word synthetic in each table, figure and file. "
            "They show that the machine works; they say nothing about real text."
        ),
    ),
)
