"""Training steps against peers and against the planner; meshes."""
