"""What a user can set: Hydra groups (YAML) composed, then checked by the pydantic schema."""
