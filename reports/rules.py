"""The rules of a fair comparison, printed in every report: what usually goes wrong, and what is done about it here."""

from __future__ import annotations

RULES: tuple[tuple[str, str], ...] = (
    (
        "Same conditions",
        (
            "Rows of one table share weights where the methods allow it, and always dtype, attention kernel, padding, length "
            "ordering and the policy on compiled blocks and graphs. A fast method beside a slow reference proves nothing. Rows "
            "of different devices, dtypes or protocols are never averaged."
        ),
    ),
    (
        "One and the same pass",
        (
            "Accuracy, FLOPs, layers and time of a row come from the same passes at the same batch size: no method is "
            "accurate at one setting and fast at another."
        ),
    ),
    (
        "Sorting is not early exit",
        (
            "Ordering samples by length makes every method faster; a method gets credit only against "
            "a reference that was ordered the same way."
        ),
    ),
    (
        "Rivals at their best",
        (
            "Each rival gets the optimisations the others get, and no synchronisation of host and device that it does not "
            "need; syncs of a pass are counted on CUDA. A faithful port of a released loop, where there is one, is a row of its "
            "own. Batch sizes are stated, the best one beside the fixed one."
        ),
    ),
    (
        "Two protocols",
        (
            "`paper` pads every sample to one length; `modern` runs packed tokens. They are never mixed, and the share of "
            "valid tokens is printed."
        ),
    ),
    (
        "Two FLOPs conventions",
        (
            "`linear` is 2 x MACs of the linear layers, as FastBERT counts; `full` adds attention products, "
            "exit heads and the rest of the matrix products that ran. Both count what the measured pass executed, padding "
            "included, from closed forms: counters that watch operators see fused attention as zero on some machines."
        ),
    ),
    (
        "The timed region",
        (
            "From token ids on the device to logits on the host in input order: predicting, sorting and "
            "un-sorting are inside; tokenising, training and building tables are outside and reported apart. Sorting a whole test "
            "set is not streaming: latency is that of single batches."
        ),
    ),
    (
        "Paired timing",
        (
            "After a warm-up, rounds alternate between the reference and the method, with another order of the samples "
            "in every round, and no calibration replays the test set; medians are shown with 10th and 90th percentiles over "
            "the rounds."
        ),
    ),
    (
        "Noise beside every ratio",
        (
            "Neighbouring passes of the reference are a thing compared with itself (A/A). The band of their ratios stands beside "
            "each ratio of times; what lies inside it is no difference."
        ),
    ),
    (
        "The speed-up is taken apart",
        (
            "Factors from layers to FLOPs to the time of blocks to wall time multiply to the measured ratio, and each loss has its "
            "name. Fewer layers are not yet less time."
        ),
    ),
    (
        "Nothing is tuned on test",
        (
            "Thresholds, quantiles and epochs are chosen on dev. Rows that test shares with train or dev are counted and printed."
        ),
    ),
    (
        "Answers depend on nothing but the sample",
        (
            "Labels must be the same in every order and every batch size, and testing must leave what was learnt unchanged, "
            "however often the test set is run. A row that fails carries a mark in every table."
        ),
    ),
    (
        "Intervals and paired tests",
        (
            "Accuracy carries a 95 % bootstrap interval over the test samples; differences are tested on the same "
            "samples with an exact test, corrected for the number of comparisons (Holm)."
        ),
    ),
    (
        "Predictors meet their controls",
        (
            "Constant, random and length-only exits stand beside every predictor, and the sequential exit and the oracle say what "
            "misprediction costs."
        ),
    ),
    (
        "Speed-up is wall time",
        (
            "`Speed-up` is wall time of the reference over wall time of the method, both in this run. "
            "Ratios of FLOPs and of layers have their own names."
        ),
    ),
    (
        "Every dataset is shown",
        (
            "No average over datasets stands for them: sets with many classes, where early exits gain little, keep their own "
            "section."
        ),
    ),
    (
        "Energy only where it is counted",
        (
            "Joules come from a counter of the device over whole passes, long against the tenth of a second in which such "
            "counters move; where there is none, a dash says so."
        ),
    ),
    (
        "Measured here, or quoted and named",
        (
            "Every number was measured in this run, except those in columns headed published: these are quoted from the named "
            "source, only where they were read off it, and were measured by others on other machines and weights."
        ),
    ),
    (
        "Synthetic data says so",
        (
            "Numbers from the embedded, generated data sets carry the word synthetic in each table, figure and file. "
            "They show that the machine works; they say nothing about real text."
        ),
    ),
)
