#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native core of slicellm.";
  slicellm::bind_error(m);
  slicellm::bind_format(m);
  slicellm::bind_model(m);
  slicellm::bind_task(m);
  slicellm::bind_latency(m);
  slicellm::bind_policy(m);
  slicellm::bind_mask_matrix(m);
  slicellm::bind_engine(m);
  slicellm::bind_simulation(m);
}
