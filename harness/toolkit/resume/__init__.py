"""States of trainings on disk, from which a killed fit resumes."""
