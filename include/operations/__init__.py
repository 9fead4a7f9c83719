"""Operations on a whole installation: freeze and thaw, backup and restore, diagnosis."""
