"""Where the policy practises."""
