"""A live incident on loopback: real servers, real alerts, in a few minutes instead of an hour."""
