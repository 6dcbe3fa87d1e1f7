"""Scores of texts against reference texts, each as its original implementation computes it.

Every metric takes one candidate a sample and all right answers of that sample: `candidates[i]` is held against
`references[i]`, a list of one or more texts. What it gives is a `score.Score`, of which `value` is the number, a
fraction of the corpus; papers print most of them times 100.
"""
