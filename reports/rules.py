"""The rules of a fair comparison, printed in every report: what often goes wrong, and what this project does about it."""

from __future__ import annotations

RULES: tuple[tuple[str, str], ...] = (
    (
        "Same conditions",
        "Rows of one table share weights where the methods allow it, and always dtype, attention kernel, padding, length ordering "
        "and the policy on compiled blocks and graphs. A fast method beside a slow reference proves nothing. Rows of different "
        "devices, dtypes or protocols are never averaged.",
    ),
    (
        "One pass for everything",
        "Accuracy, FLOPs, layers and time of a row come from the same passes at the same batch size: no method is accurate in one "
        "setting and fast in another.",
    ),
    (
        "Sorting is not early exit",
        "Ordering samples by length makes every method faster; a method gets credit only against a reference with the same order.",
    ),
    (
        "Rivals at their best",
        "Each rival gets the same optimisations as the others, and no synchronisation of host and device that it does not need; "
        "syncs per pass are counted on CUDA. A faithful port of a released loop, where there is one, is a row of its own. Batch "
        "sizes are stated, the best one beside the fixed one.",
    ),
    (
        "Two protocols",
        "`paper` pads every sample to one length; `modern` runs packed tokens. They are never mixed, and the share of valid tokens "
        "is printed.",
    ),
    (
        "Two FLOPs conventions",
        "`linear` is 2 x MACs of the linear layers, as FastBERT counts; `full` adds attention products, exit heads and all other "
        "matrix products that ran. Both count what the measured pass executed, padding included, with closed formulas: counters "
        "that observe operators see fused attention as zero on some machines.",
    ),
    (
        "The timed region",
        "From token ids on the device to logits on the host in input order: predicting exits, sorting and un-sorting are inside; "
        "tokenising, training and building tables are outside and reported separately. Sorting a whole test set is not streaming: "
        "latency is that of single batches.",
    ),
    (
        "Paired timing",
        "After a warm-up, rounds alternate between the reference and the method, with a different order of the samples in every "
        "round, and no calibration uses the test set; medians are shown with 10th and 90th percentiles over the rounds.",
    ),
    (
        "Noise beside every ratio",
        "Neighbouring passes of the reference compare it with itself (A/A). The band of their ratios stands beside each ratio of "
        "times; a ratio inside the band shows no difference.",
    ),
    (
        "Speed-ups are split into factors",
        "Factors from layers to FLOPs to block time to wall time multiply to the measured ratio, and each loss has a name. Fewer "
        "layers alone do not mean less time.",
    ),
    (
        "Nothing is tuned on test",
        "Thresholds, quantiles and epochs are chosen on dev. Rows that test shares with train or dev are counted and printed.",
    ),
    (
        "Predictions depend on the sample only",
        "Labels must be the same in every order and every batch size, and testing must leave the fitted state unchanged, however "
        "often the test set is run. A row that violates this carries a mark in every table.",
    ),
    (
        "Intervals and paired tests",
        "Accuracy has a 95 % bootstrap interval over the test samples; differences are tested on the same samples with an exact "
        "test, corrected for the number of comparisons (Holm).",
    ),
    (
        "Predictors are compared with controls",
        "Constant, random and length-only exits stand beside every predictor, and the sequential exit and the oracle show the cost "
        "of wrong predictions.",
    ),
    (
        "Speed-up is wall time",
        "`Speed-up` is wall time of the reference over wall time of the method, both in this run. Ratios of FLOPs and of layers "
        "have names of their own.",
    ),
    (
        "Every dataset is shown",
        "No average over datasets replaces them: sets with many classes, where early exits gain little, have their own section.",
    ),
    (
        "Energy only if counted",
        "Joules come from a counter of the device over whole passes that are long compared with the tenth of a second in which "
        "such counters advance; without a counter the table shows a dash.",
    ),
    (
        "Measured here, or quoted with a source",
        "Every number was measured in this run, except those in columns headed published: these were read from the named source "
        "and were measured by others on other machines and weights.",
    ),
    (
        "Synthetic data is marked",
        "Numbers from the embedded, generated datasets carry the word synthetic in each table, figure and file. They show that the "
        "software works; they say nothing about real text.",
    ),
)
