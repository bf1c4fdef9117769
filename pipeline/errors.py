"""What a user did wrong, in one line."""


class UserError(ValueError):
    """A mistake in a recipe, a folder or a file: the field, the value and what is allowed."""
