"""Which of train, validation and test a document belongs to."""
