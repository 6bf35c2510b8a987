"""Simulations: do intervals over seeds and cases cover, and does the gate let through what it should?"""
