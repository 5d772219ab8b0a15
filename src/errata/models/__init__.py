"""Policies that others trained and that errata can fetch by a short name."""
