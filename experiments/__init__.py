"""Many runs asked one question: planned, distributed by existing engines, compared over seeds and documents."""
