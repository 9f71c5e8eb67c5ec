#pragma once

#include <vector>

#include "latency/residual_quantile.h"
#include "slicellm/latency_model.h"

namespace slicellm {

// A published table of decode steps: see make_table_latency_model in latency_model.h.
class TableModel final : public LatencyModel {
 public:
  TableModel(std::vector<double> decode_seconds, double prefill, double prefill_per_token,
             double quantile);

  Prediction predict(const StepFeatures& step) const override;
  void observe(const StepFeatures& step, double seconds) override;
  std::string to_json() const override;
  std::unique_ptr<LatencyModel> clone() const override {
    return std::make_unique<TableModel>(*this);
  }

 private:
  std::vector<double> decode_seconds_;
  double prefill_, prefill_per_token_;
  double slope_ = 0;  // seconds per row beyond the table
  ResidualQuantile residuals_;
};

}  // namespace slicellm
