"""From records to tables, figures and verdicts."""
