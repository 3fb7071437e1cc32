# What a mocked Google Cloud answers, where a made-up word would not do.

mock_resource "google_sql_database_instance" {
  defaults = {
    private_ip_address = "10.20.30.40"
    connection_name    = "orcheo-prod:europe-west1:orcheo-db"
    server_ca_cert     = [{ cert = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----", common_name = "x", create_time = "x", expiration_time = "x", sha1_fingerprint = "x" }]
  }
}
