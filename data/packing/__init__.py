"""Which chunk of which document lies in which packed sequence, decided before training begins."""
