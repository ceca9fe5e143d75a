"""JSON Schema, as the grammar has it and as answers keep it."""
