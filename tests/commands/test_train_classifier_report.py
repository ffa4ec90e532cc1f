"""What train_classifier says of a classifier, from given probabilities."""

import re

import numpy as np

from serl_fast.data.labelled import Frame
from serl_fast.train_classifier_report import Judged, digits_of, print_report, report_of


def test_episodes_in_which_a_failure_passes():
    blank = {"front": np.zeros((32, 32, 3), np.uint8)}
    labels, groups, success = [0, 0, 0, 0, 0, 1], "aabbcd", [0.9, 0.8, 0.1, 0.7, 0.2, 0.95]
    frames = [Frame(blank, label, group, "") for label, group in zip(labels, groups, strict=True)]
    probabilities = np.array([[1 - p, p] for p in success], np.float32)
    threshold = report_of(Judged(frames, ("failure", "success"), probabilities, 1), 0.01)["threshold"]
    assert (threshold["negative_episodes"], threshold["false_positive_episodes"]) == (3, 0)
    probabilities[:, 1] = [0.9, 0.8, 0.1, 0.7, 0.2, 0.6]
    report = report_of(Judged(frames, ("failure", "success"), probabilities, 1), 0.7)
    assert (report["threshold"]["false_positives"], report["threshold"]["false_positive_episodes"]) == (3, 2)
    assert report["confusion"] == [[2, 3], [0, 1]]


def judged(success, labels):
    blank = {"front": np.zeros((32, 32, 3), np.uint8)}
    frames = [Frame(blank, label, str(n), "") for n, label in enumerate(labels)]
    probabilities = np.array([[1 - p, p] for p in success], np.float32)
    return Judged(frames, ("failure", "success"), probabilities, 1)


def test_a_classifier_that_recognises_nothing_is_said_to_be_of_no_use(capsys):
    labels = [0] * 10 + [1] * 10
    print_report(report_of(judged([0.5] * 20, labels), 0.01))
    said = capsys.readouterr().out
    assert "WARNING: this classifier is of no use yet: it recognises 0.0% of the held-out successes" in said
    assert "its ROC area is 0.5000" in said
    print_report(report_of(judged([0.1] * 4 + [0.7] * 6 + [0.8] * 8 + [0.2] * 2, labels), 0.01))
    assert "recognises 80.0% of the held-out successes (wanted: 50%), and its ROC area is 0.88" in (
        capsys.readouterr().out
    )
    print_report(report_of(judged([0.95] + [0.1] * 19 + [0.9] * 10, [0] * 20 + [1] * 10), 0.01))
    assert "recognises 0.0% of the held-out successes (wanted: 50%), and its ROC area is 0.95" in (
        capsys.readouterr().out
    )
    print_report(report_of(judged([0.1] * 10 + [0.9] * 10, labels), 0.01))
    assert "WARNING" not in capsys.readouterr().out


def test_a_threshold_at_the_edge_is_told_from_one(capsys):
    assert [digits_of(p) for p in (0.788, 0.5, 0.0101)] == ["0.788", "0.500", "0.010"]
    assert digits_of(1 - 3e-8) == "0.99999997"
    assert float(digits_of(float(np.nextafter(1.0, 0.0)))) < 1
    print_report(report_of(judged([1 - 2e-7] * 3 + [1] * 3, [0] * 3 + [1] * 3), 0.01))
    assert re.search(r"threshold 0\.9999999\d*:", capsys.readouterr().out)


def test_the_report_compares_as_the_run_does():
    """In float32 0.7 is a little less than 0.7, and equal to it when both are rounded."""
    assert float(np.float32(0.7)) < 0.7
    assert judged([0.7], [1]).predicted(0.7).tolist() == [0]
