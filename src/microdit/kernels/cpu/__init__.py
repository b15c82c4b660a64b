"""Operations of a block compiled for this computer's processor."""
