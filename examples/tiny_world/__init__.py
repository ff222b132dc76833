"""The tiny world: spoken tasks with checkable answers, rendered, encoded and learned on two CPU cores."""
