"""A person's judgement: decisions that outlive the server, the page they are made on, and how far reviewers agree."""
