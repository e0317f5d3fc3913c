"""Running the store: scheduled jobs, repair of days, archive, backup. Logic of features is dbt's; this calls it."""
