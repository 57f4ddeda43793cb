"""Operations for staff: dead letters."""
