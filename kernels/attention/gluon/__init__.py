"""Attention over spans for Hopper in Gluon, warp-specialized."""
