// What nearly every test includes, parsed once; see src/base/precompiled.h.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "base/precompiled.h"
