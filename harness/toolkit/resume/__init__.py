"""States of trainings on disk, from which a fit that was killed goes on."""
