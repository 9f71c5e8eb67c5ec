#pragma once

#include <memory>

#include "policy/parameters.h"
#include "slicellm/dispatch.h"

namespace slicellm {

PolicyInfo scls_dispatch_info();
std::unique_ptr<Dispatcher> make_scls_dispatcher(const Parameters& parameters, int32_t instances,
                                                 const View& machine);

}  // namespace slicellm
